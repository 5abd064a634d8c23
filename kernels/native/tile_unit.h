// The tile unit of a processor with AMX, at levels that have it.
#pragma once

#if defined(__AMX_TILE__)

#include <immintrin.h>
#include <stdint.h>

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Sets the unit to eight tiles of 16 rows by 64 bytes, as long as this lives.
class TileUnit {
 public:
  TileUnit() {
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
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;
  ~TileUnit() { _tile_release(); }
};

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
