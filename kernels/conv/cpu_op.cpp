#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "conv/cpu.h"
#include "native/aligned.h"
#include "native/pages.h"

namespace vitrify {
namespace {

// A thread's scratch, kept as long as the thread.
float* scratch(size_t words) {
  thread_local Scratch memory;
  return memory.at_least(words);
}

// Most words of a tile's x, which is to stay in the second-level cache beside a panel's weights.
constexpr size_t kTileWords = 5 << 16;
constexpr size_t kTilePixels = 3 << 10;  // And most pixels of it: their sums are to stay there too.
constexpr size_t kColumns = 32;          // Tiles are cut between those many columns, the most positions of a run.
// What a tile of one column would cost beside the pixels taken in, in those of its inside: x and y are read and written
// in rows, which the machine foresees where they are long (measured).
constexpr double kShortRow = 36;
// Below this many multiplications waking a pool costs more than it saves.
constexpr size_t kSmall = 1 << 20;
constexpr size_t kTasksPerThread = 4;
// From this size on (2 MiB) y is written past the caches, which need not read it before and have no room for it.
constexpr size_t kPastCaches = 1 << 19;

// The rows and columns of the tiles that y is cut into: of those that fit, with little around them for what is inside
// and in long rows. It depends on sizes alone, not on the number of threads.
ConvTile tile_of(size_t height, size_t width, size_t in, size_t kernel, const ConvForm& form) {
  const size_t around = kernel - 1;
  const size_t most = std::min(kTileWords / (conv_words(in, form) * form.parts), kTilePixels);
  ConvTile best;
  double least = HUGE_VAL;
  for (size_t parts = 1; parts <= conv_parts(width, kColumns); ++parts) {
    const size_t columns = std::min(conv_parts(conv_parts(width, parts), kColumns) * kColumns, width);
    const size_t fit = most / (columns + around);
    const size_t bands = conv_parts(height, fit > around ? fit - around : 1);
    const size_t rows = conv_parts(height, bands);
    const double whole = static_cast<double>((rows + around) * (columns + around));
    if (fit <= around && columns > kColumns) continue;
    const double cost = whole / static_cast<double>(rows * columns) + kShortRow / static_cast<double>(columns);
    if (cost < least) {
      least = cost;
      best = {0, rows, 0, columns};
    }
  }
  return best;
}

struct Input {
  enum { plain, normalised, upsampled };
};

template <ConvPrecision precision, int input, bool residual>
class ConvKernel final : public Kernel {
  static constexpr bool kNorm = input == Input::normalised;
  static constexpr int kWeight = kNorm ? 3 : 1;

 public:
  explicit ConvKernel(const Node& node) : pack_(conv_pack_by_level.active()), span_(conv_span_by_level.active()) {
    const Tensor* weight = node.constants[kWeight];
    if (weight == nullptr) throw OpError("weight is not constant: it must be an initializer");
    out_ = static_cast<size_t>(weight->dims[0]);
    in_ = static_cast<size_t>(weight->dims[1]);
    kernel_ = static_cast<size_t>(weight->dims[2]);
    if (!conv_has_kernel(kernel_)) {
      throw OpError("weight has " + std::to_string(kernel_) + " along kernel, expected 1 or 3");
    }
    if (in_ == 0) throw OpError("weight has 0 along in, expected at least 1");
    if (kNorm) {
      const int64_t groups = node.integer("groups");
      if (groups < 1 || static_cast<int64_t>(in_) % groups != 0) {
        throw OpError("attribute groups is " + std::to_string(groups) + ", expected a divisor of " +
                      std::to_string(in_) + " (in)");
      }
      groups_ = static_cast<size_t>(groups);
      epsilon_ = node.real("epsilon");
      if (!(epsilon_ >= 0)) throw OpError("attribute epsilon is " + std::to_string(epsilon_) + ", expected 0 or more");
    }
    const DType type = weight->dtype;
    const size_t count = out_ * in_ * kernel_ * kernel_;
    form_ = conv_form_by_level.active()(precision, weight->data, type, count);
    packed_ = aligned_floats(conv_packed(out_, in_, kernel_, form_));
    pack_(form_, precision, weight->data, type, out_, in_, kernel_, packed_.get());
    give_back_pages(weight->data, count * dtype_size(weight->dtype));
  }

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    const size_t images = static_cast<size_t>(x.dims[0]);
    ConvProblem problem;
    problem.x = x.as<const float>();
    problem.upsample = input == Input::upsampled;
    problem.weight = packed_.get();
    problem.bias = inputs[kWeight + 1].as<const float>();
    if (residual) problem.residual = inputs[kWeight + 2].as<const float>();
    problem.y = outputs[0].as<float>();
    problem.in = in_;
    problem.out = out_;
    problem.height = static_cast<size_t>(x.dims[2]);
    problem.width = static_cast<size_t>(x.dims[3]);
    problem.kernel = kernel_;
    if (images * out_ * problem.height * problem.width == 0) return;
    std::vector<float> norm;
    if (kNorm) {
      norm.resize(3 * images * in_);
      problem.mean = norm.data();
      problem.factor = norm.data() + images * in_;
      problem.shift = norm.data() + 2 * images * in_;
      measure(problem, images, inputs[1].as<const float>(), inputs[2].as<const float>(), parallel, norm.data());
    }

    const size_t times = problem.upsample ? 2 : 1;
    const size_t height = problem.y_height = problem.height * times;
    const size_t width = problem.y_width = problem.width * times;
    problem.past_caches = images * out_ * height * width >= kPastCaches;
    const ConvTile tile = tile_of(height, width, in_, kernel_, form_);
    const size_t bands = conv_parts(height, tile.rows);
    const size_t across = conv_parts(width, tile.columns);
    const size_t panels = conv_parts(out_, form_.panel);
    const size_t tiles = images * bands * across;
    const bool small = height * width * images * conv_packed(out_, in_, kernel_, form_) < kSmall;
    const size_t shares = small ? 1 : shares_of(tiles, panels, parallel.threads());
    const size_t words = conv_scratch(tile, in_, kernel_, form_);
    (small ? Parallel() : parallel).for_each(tiles * shares, [&](size_t task) {
      const size_t share = task % shares;
      const size_t at = task / shares;
      const size_t row = at / across % bands * tile.rows;
      const size_t column = at % across * tile.columns;
      const ConvTile one = {row, std::min(tile.rows, height - row), column, std::min(tile.columns, width - column)};
      const size_t panel = panels * share / shares;
      span_(form_, precision, problem, at / (across * bands), one, panel, panels * (share + 1) / shares - panel,
            scratch(words));
    });
  }

 private:
  // How many tasks share a tile's output channels: as few as give every thread some, and all the same number.
  static size_t shares_of(size_t tiles, size_t panels, size_t threads) {
    size_t shares = 1;
    const auto wanting = [&] {
      const size_t tasks = tiles * shares;
      return tasks < kTasksPerThread * threads && (tasks < threads || tasks % threads != 0);
    };
    while (threads > 1 && wanting() && shares < panels)
      ++shares;
    return shares;
  }

  // norm: mean, factor and shift, [images, in] each. What the mean loses when it is rounded is taken off the shift.
  void measure(const ConvProblem& problem, size_t images, const float* weight, const float* bias,
               const Parallel& parallel, float* norm) const {
    const size_t channels = in_ / groups_;
    const size_t count = channels * problem.height * problem.width;
    ConvMoments* const moments = conv_moments_by_level.active();
    const bool small = images * groups_ * count < kSmall / 8;
    (small ? Parallel() : parallel).for_each(images * groups_, [&](size_t group) {
      const GroupMoments found = moments(problem.x + group * count, count);
      const double inverse = 1.0 / std::sqrt(found.variance + static_cast<double>(epsilon_));
      const float mean = static_cast<float>(found.mean);
      const double rest = found.mean - static_cast<double>(mean);
      for (size_t i = group * channels; i < (group + 1) * channels; ++i) {
        const double factor = inverse * static_cast<double>(weight[i % in_]);
        norm[i] = mean;
        norm[images * in_ + i] = static_cast<float>(factor);
        norm[2 * images * in_ + i] = static_cast<float>(static_cast<double>(bias[i % in_]) - rest * factor);
      }
    });
  }

  ConvPack* pack_;
  ConvSpan* span_;
  ConvForm form_ = {};
  AlignedFloats packed_;
  size_t out_ = 0;
  size_t in_ = 0;
  size_t kernel_ = 0;
  size_t groups_ = 0;
  float epsilon_ = 0;
};

constexpr DTypes kStored = {DType::float32, DType::bfloat16, DType::float16};
constexpr TensorContract kX = {"x", DType::float32, 4, {"batch", "in", "height", "width"}};
constexpr TensorContract kNormWeight = {"norm_weight", DType::float32, 1, {"in"}};
constexpr TensorContract kNormBias = {"norm_bias", DType::float32, 1, {"in"}};
constexpr TensorContract kWeight = {"weight", kStored, 4, {"out", "in", "kernel", "kernel"}};
constexpr TensorContract kBias = {"bias", DType::float32, 1, {"out"}};
constexpr TensorContract kResidual = {"residual", DType::float32, 4, {"batch", "out", "height", "width"}};

constexpr TensorContract kInputs[] = {kX, kWeight, kBias, kResidual};
constexpr TensorContract kNormInputs[] = {kX, kNormWeight, kNormBias, kWeight, kBias, kResidual};
constexpr TensorContract kOutputs[] = {
    {"y", DType::float32, 4, {"batch", "out", "height", "width"}},
};
constexpr TensorContract kTwice[] = {
    {"y", DType::float32, 4, {"batch", "out", "height + height", "width + width"}},
};
constexpr AttributeContract kNormAttributes[] = {
    {"groups", AttributeKind::integer, true, 0},
    {"epsilon", AttributeKind::real, true, 0},
};

template <ConvPrecision precision, int input, bool residual>
constexpr Operator operator_of(const char* name) {
  constexpr bool kNorm = input == Input::normalised;
  return {name,
          1,
          kNorm ? kNormAttributes : nullptr,
          kNorm ? 2 : 0,
          kNorm ? kNormInputs : kInputs,
          (kNorm ? 5 : 3) + (residual ? 1 : 0),
          input == Input::upsampled ? kTwice : kOutputs,
          1,
          &create_kernel<ConvKernel<precision, input, residual>>,
          true};
}

constexpr ConvPrecision kFloat32 = ConvPrecision::float32;
constexpr ConvPrecision kBf16 = ConvPrecision::bfloat16;
constexpr int kPlain = Input::plain;
constexpr int kNormalised = Input::normalised;
constexpr int kUpsampled = Input::upsampled;

}  // namespace

const Operator kConv2d = operator_of<kFloat32, kPlain, false>("Conv2d");
const Operator kConv2dResidual = operator_of<kFloat32, kPlain, true>("Conv2dResidual");
const Operator kGroupNormSiluConv2d = operator_of<kFloat32, kNormalised, false>("GroupNormSiluConv2d");
const Operator kGroupNormSiluConv2dResidual = operator_of<kFloat32, kNormalised, true>("GroupNormSiluConv2dResidual");
const Operator kUpsampleConv2d = operator_of<kFloat32, kUpsampled, false>("UpsampleConv2d");

const Operator kConv2dBf16 = operator_of<kBf16, kPlain, false>("Conv2dBf16");
const Operator kConv2dResidualBf16 = operator_of<kBf16, kPlain, true>("Conv2dResidualBf16");
const Operator kGroupNormSiluConv2dBf16 = operator_of<kBf16, kNormalised, false>("GroupNormSiluConv2dBf16");
const Operator kGroupNormSiluConv2dResidualBf16 =
    operator_of<kBf16, kNormalised, true>("GroupNormSiluConv2dResidualBf16");
const Operator kUpsampleConv2dBf16 = operator_of<kBf16, kUpsampled, false>("UpsampleConv2dBf16");

}  // namespace vitrify
