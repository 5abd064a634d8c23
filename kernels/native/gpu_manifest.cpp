#include "native/gpu_manifest.h"

#include <fstream>
#include <iterator>

#include "native/json.h"

namespace vitrify {
namespace {

constexpr int64_t kFormat = 3;

std::vector<std::string> strings(const Json& list, const std::string& where) {
  std::vector<std::string> found;
  for (const Json& item : list.array(where))
    found.push_back(item.string(where));
  return found;
}

std::map<std::string, std::string> texts(const Json& fields, const std::string& where) {
  std::map<std::string, std::string> found;
  for (const auto& [name, value] : fields.object(where))
    found[name] = value.string(where + ", " + name);
  return found;
}

template <typename Number>
Number counted(const Json& fields, const char* field, const std::string& where, int64_t least, int64_t most) {
  const int64_t value = fields.at(field, where).integer(where + ", " + field);
  if (value < least || value > most) {
    throw ManifestError(where + ": " + field + " is " + std::to_string(value) + ", expected " + std::to_string(least) +
                        " to " + std::to_string(most));
  }
  return static_cast<Number>(value);
}

// Where each parameter must lie: 8 bytes for a pointer, 4 for an int32, each aligned to its size.
std::vector<GpuParameter> layout(const GpuKernel& kernel) {
  std::vector<GpuParameter> parameters;
  size_t at = 0;
  for (size_t i = 0; i < kernel.arguments.size() + kernel.hidden; ++i) {
    const size_t size = i < kernel.arguments.size() && !kernel.arguments[i].pointer ? 4 : 8;
    at = (at + size - 1) / size * size;
    parameters.push_back({at, size});
    at += size;
  }
  return parameters;
}

GpuImage read_image(const GpuKernel& kernel, const Json& fields, const std::string& where) {
  GpuImage image;
  image.file = fields.at("file", where).string(where + ", file");
  if (image.file.empty() || image.file.find('/') != std::string::npos || image.file[0] == '.') {
    throw ManifestError(where + ": file '" + image.file + "' is no plain name");
  }
  image.bytes = counted<size_t>(fields, "bytes", where, 1, int64_t{1} << 30);
  image.entry = fields.at("entry", where).string(where + ", entry");
  for (const auto& [name, size] : fields.at("tile", where).object(where + ", tile"))
    image.tile[name] = size.integer(where + ", tile");
  image.num_warps = counted<unsigned>(fields, "num_warps", where, 1, 32);
  image.shared_bytes = counted<unsigned>(fields, "shared_bytes", where, 0, 1 << 20);
  for (const Json& pair : fields.at("parameters", where).array(where + ", parameters")) {
    const auto& numbers = pair.array(where + ", parameters");
    if (numbers.size() != 2) throw ManifestError(where + ": parameters must be pairs of offset and size");
    image.parameters.push_back({static_cast<size_t>(numbers[0].integer(where + ", offset")),
                                static_cast<size_t>(numbers[1].integer(where + ", size"))});
  }
  const std::vector<GpuParameter> expected = layout(kernel);
  bool same = expected.size() == image.parameters.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    same = expected[i].offset == image.parameters[i].offset && expected[i].size == image.parameters[i].size;
  }
  if (!same) {
    throw ManifestError(where + ": its " + std::to_string(image.parameters.size()) +
                        " parameters are not those of the kernel's arguments, of which there are " +
                        std::to_string(expected.size()) + " with the hidden ones; build the kernels again");
  }
  return image;
}

GpuKernel read_kernel(const std::string& name, const Json& fields, const std::string& where) {
  GpuKernel kernel;
  kernel.name = name;
  for (const Json& row : fields.at("arguments", where).array(where + ", arguments")) {
    const std::string type = row.at("type", where).string(where + ", type");
    if (type != "pointer" && type != "int32") {
      throw ManifestError(where + ": argument type '" + type + "', expected pointer or int32");
    }
    kernel.arguments.push_back({row.at("name", where).string(where + ", name"), type == "pointer",
                                row.at("dtype", where).string(where + ", dtype"),
                                counted<int64_t>(row, "divisible_by", where, 1, 1 << 20),
                                counted<int64_t>(row, "least", where, 0, 1 << 20)});
  }
  if (kernel.arguments.empty()) throw ManifestError(where + ": a kernel without arguments");
  kernel.hidden = strings(fields.at("hidden", where), where + ", hidden").size();
  kernel.sizes = strings(fields.at("sizes", where), where + ", sizes");
  kernel.grid = strings(fields.at("grid", where), where + ", grid");
  if (kernel.grid.empty() || kernel.grid.size() > 3) throw ManifestError(where + ": a grid has one to three sizes");
  for (const auto& [variant_name, row] : fields.at("variants", where).object(where + ", variants")) {
    const std::string at = where + ", variant " + variant_name;
    GpuVariant variant;
    variant.name = variant_name;
    variant.dtype = row.at("dtype", at).string(at + ", dtype");
    for (const auto& [constant, value] : row.at("constants", at).object(at + ", constants"))
      variant.constants[constant] = value.number(at + ", " + constant);
    for (const auto& [arch, image] : row.at("images", at).object(at + ", images"))
      variant.images[arch] = read_image(kernel, image, at + ", image " + arch);
    kernel.variants.push_back(std::move(variant));
  }
  return kernel;
}

GpuProgram read_program(const GpuManifest& manifest, const Json& fields, const std::string& where) {
  GpuProgram program;
  program.version = fields.at("version", where).integer(where + ", version");
  for (const Json& row : fields.at("scratch", where).array(where + ", scratch")) {
    auto found = texts(row, where + ", scratch");
    program.scratch.push_back({found["name"], found["dtype"], found["elements"]});
  }
  for (const Json& row : fields.at("launches", where).array(where + ", launches")) {
    const std::string name = row.at("kernel", where).string(where + ", kernel");
    const auto kernel = manifest.kernels.find(name);
    if (kernel == manifest.kernels.end()) {
      throw ManifestError(where + ": launches '" + name + "', which is no kernel of it");
    }
    program.launches.push_back({&kernel->second, texts(row.at("arguments", where), where + ", arguments"),
                                texts(row.at("constants", where), where + ", constants")});
  }
  if (program.launches.empty())
    throw ManifestError(where + ": a program without launches would leave its outputs unset");
  for (const Json& row : fields.at("conditions", where).array(where + ", conditions")) {
    auto found = texts(row, where + ", conditions");
    if (found["relation"] != "<=" && found["relation"] != "=") {
      throw ManifestError(where + ": relation '" + found["relation"] + "', expected <= or =");
    }
    program.conditions.push_back({found["value"], found["relation"] == "=", found["other"]});
  }
  return program;
}

}  // namespace

bool GpuKernel::follows_activations() const {
  for (const GpuArgument& argument : arguments) {
    if (argument.pointer && argument.dtype == "activation") return true;
  }
  return false;
}

const std::string& GpuLaunch::given(const std::string& name) const {
  const auto found = arguments.find(name);
  return found == arguments.end() ? name : found->second;
}

std::string read_file(const std::string& path) {
  try {
    std::ifstream stream(path, std::ios::binary);
    if (stream.is_open()) return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  } catch (const std::ios_base::failure&) {  // The standard library's buffer throws, whatever the stream was told.
  }
  throw ManifestError(path + " cannot be read; run: vitrify kernels build");
}

GpuManifest GpuManifest::read(const std::string& folder) {
  const std::string file = folder + "/manifest.json";
  GpuManifest manifest;
  try {
    const Json whole = Json::parse(read_file(file));
    const int64_t format = whole.at("format", "it").integer("format");
    if (format != kFormat) {
      throw ManifestError("format " + std::to_string(format) + ", this library reads " + std::to_string(kFormat));
    }
    for (const auto& [name, fields] : whole.at("kernels", "it").object("kernels"))
      manifest.kernels.emplace(name, read_kernel(name, fields, "kernel " + name));
    for (const auto& [op, fields] : whole.at("programs", "it").object("programs"))
      manifest.programs.emplace(op, read_program(manifest, fields, "program " + op));
  } catch (const JsonError& error) {
    throw ManifestError(file + ": " + error.what());
  } catch (const ManifestError& error) {
    const std::string what = error.what();
    throw ManifestError(what.compare(0, file.size(), file) == 0 ? what : file + ": " + what);
  }
  return manifest;
}

}  // namespace vitrify
