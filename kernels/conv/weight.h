// Weights in the order and precision in which the products read them.
#pragma once

#include "conv/cpu.h"
#include "native/split.h"
#include "native/stored.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// For vector registers: [panels][words of channels][kernel²][panel] words.
template <typename T>
void pack_for_vectors(const ConvForm& form, bool rounded, const T* weight, size_t out, size_t in, size_t taps,
                      float* packed) {
  const size_t words = conv_words(in, form);
  for (size_t column = 0; column < conv_parts(out, form.panel) * form.panel; ++column) {
    float* const to = packed + column / form.panel * words * taps * form.panel + column % form.panel;
    for (size_t word = 0; word < words; ++word) {
      for (size_t tap = 0; tap < taps; ++tap) {
        const auto at = [&](size_t channel) {
          if (column >= out || channel >= in) return 0.0F;
          const float value = widen(weight[(column * in + channel) * taps + tap]);
          return rounded ? round_bf16(value) : value;
        };
        float value = at(word * form.group);
        if (form.group == 2) value = from_bits(bf16_bits(value) | to_bits(at(2 * word + 1)));
        __builtin_memcpy(to + (word * taps + tap) * form.panel, &value, sizeof(value));
      }
    }
  }
}

#if defined(__AMX_TILE__)

constexpr size_t kConvChannels = 2 * kTileWords;  // Channels of a step: a tile's row holds those many bfloat16.

// For the tile unit: [panels][steps][parts of the weight][16 output channels][16 words]; steps are blocks of channels,
// of each the kernel's taps.
template <typename T>
void pack_for_tiles(const ConvForm& form, const T* weight, size_t out, size_t in, size_t taps, float* packed) {
  const size_t blocks = conv_parts(in, kConvChannels);
  for (size_t column = 0; column < conv_parts(out, kTileRows) * kTileRows; ++column) {
    for (size_t step = 0; step < blocks * taps; ++step) {
      float* const to = packed + ((column / kTileRows * blocks * taps + step) * form.weights) * kTileSize +
                        column % kTileRows * kTileWords;
      for (size_t word = 0; word < kTileWords; ++word) {
        uint32_t bits[kSplitParts] = {};
        for (size_t half = 0; half < 2; ++half) {
          const size_t channel = step / taps * kConvChannels + 2 * word + half;
          float left =
              column < out && channel < in ? widen(weight[(column * in + channel) * taps + step % taps]) : 0.0F;
          for (size_t part = 0; part < form.weights; ++part) {
            const float taken = round_bf16(left);
            bits[part] |= bf16_bits(taken) << (16 * half);
            left -= taken;
          }
        }
        for (size_t part = 0; part < form.weights; ++part)
          __builtin_memcpy(to + part * kTileSize + word, &bits[part], sizeof(bits[part]));
      }
    }
  }
}

// Whether the tile unit may take a weight's parts for it.
template <typename T>
bool may_split(const T* weight, size_t count) {
  float largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const float size = __builtin_fabsf(widen(weight[i]));
    if (size != size) return false;
    if (size > largest) largest = size;
  }
  return may_split(largest);
}

#endif

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
