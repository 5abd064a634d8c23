// The tile unit (AMX): eight registers, each 16 rows of 64 bytes. For levels that have it.
#pragma once

#if defined(__AMX_TILE__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr size_t kTileRows = 16;
constexpr size_t kTileWords = 16;  // Words of 4 bytes in a row.
constexpr size_t kTileSize = kTileRows * kTileWords;

// The registers are set to whole tiles as long as this lives.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) Configuration {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const configuration;
    __asm__ volatile("" : : "r"(&configuration) : "memory");  // The intrinsic does not say that it reads memory.
    _tile_loadconfig(&configuration);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

// The intrinsics do not say which memory they read and write either: between a tile's loads or stores and what writes
// or reads that memory otherwise.
inline void tile_memory_fence() {
  __asm__ volatile("" : : : "memory");
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
