// What `vitrify kernels build` wrote: kernels, their compiled images, and the programs of the ops (engine/cubins.py
// documents every field). Nothing in the file is trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/expression.h"

namespace vitrify {

// A manifest, or an image of it, that is not what it must be.
class ManifestError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct GpuArgument {
  std::string name;
  bool pointer;
  std::string dtype;  // Of what a pointer points to; "activation" follows the variant.
  int64_t divisible_by;
  int64_t least;  // Of a number, in a launch that is not empty.
};

struct GpuParameter {
  size_t offset;
  size_t size;
};

struct GpuImage {
  std::string file;
  size_t bytes;
  std::string entry;
  Numbers tile;
  unsigned num_warps;
  unsigned shared_bytes;
  std::vector<GpuParameter> parameters;  // Hidden ones included.
};

struct GpuVariant {
  std::string name;
  std::string dtype;
  std::map<std::string, double> constants;
  std::map<std::string, GpuImage> images;  // By architecture, `sm_90` or `sm_80_ptx`.
};

struct GpuKernel {
  std::string name;
  std::vector<GpuArgument> arguments;
  size_t hidden;
  std::vector<std::string> sizes;
  std::vector<std::string> grid;
  std::vector<GpuVariant> variants;

  bool follows_activations() const;
};

struct GpuLaunch {
  const GpuKernel* kernel;
  std::map<std::string, std::string> arguments;
  std::map<std::string, std::string> constants;

  // What an argument or size of the kernel is given: a tensor's name or an expression.
  const std::string& given(const std::string& name) const;
};

struct GpuScratch {
  std::string name;
  std::string dtype;
  std::string elements;
};

// What a call must hold to: `value` is at most `other`, or equal to it.
struct GpuCondition {
  std::string value;
  bool equal;
  std::string other;
};

struct GpuProgram {
  int64_t version;
  std::vector<GpuScratch> scratch;
  std::vector<GpuLaunch> launches;
  std::vector<GpuCondition> conditions;
};

struct GpuManifest {
  std::map<std::string, GpuKernel> kernels;
  std::map<std::string, GpuProgram> programs;

  // Reads `folder`/manifest.json. Throws ManifestError for a file that is missing, damaged, of another format, or
  // whose images have other parameters than their kernel's arguments need.
  static GpuManifest read(const std::string& folder);

  GpuManifest() = default;
  GpuManifest(GpuManifest&&) = default;  // Launches point into `kernels`, whose nodes do not move.
  GpuManifest(const GpuManifest&) = delete;
};

// A whole file. Throws ManifestError.
std::string read_file(const std::string& path);

}  // namespace vitrify
