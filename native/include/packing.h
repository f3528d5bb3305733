// Owns a packed weight matrix: made from the bytes of a file or from float32 rows, read back row by row.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "packed_weight.h"

namespace kvern {

class Pool;

// What a format's rows look like in a file, and how many bytes a tile of 16 packed outputs takes.
struct FormatInfo {
    const char* name;
    int block;        // inputs of one file block (1 for plain numbers)
    int block_bytes;  // 0: no file format (w8a8)
    int bits;         // of a code; 0 for plain numbers
    int halves;       // f16 numbers before each group's planes: 1 d, 2 d and m (super-blocks: before each of these)
    bool super;       // super-blocks of 256
};

const FormatInfo& format_info(Format format);
// Lower or upper case; throws std::invalid_argument naming the known ones.
Format parse_format(const std::string& name);
int64_t packed_tile_bytes(Format format, int64_t k);

class PackedWeight {
  public:
    // `data`: `bytes` of whole rows in the file's order. Output i is file row `rows[i]` (null: i, and n rows
    // exactly). Throws std::invalid_argument when a size, a row number or the format does not fit.
    static PackedWeight from_blocks(Format format, const uint8_t* data, size_t bytes, int64_t n, int64_t k,
                                    const int32_t* rows, Pool* pool);
    // f32, bf16 (nearest even) or w8a8 (scale = max|w| / 127 per output) from float32 [n][k]; w8a8 refuses values
    // that are not finite.
    static PackedWeight from_float(Format format, const float* data, int64_t n, int64_t k, Pool* pool);

    const WeightView& view() const { return view_; }
    size_t bytes() const { return bytes_; }
    // Output `row` as float32[k]: exactly d * code + m. `row` must be in [0, n).
    void row(int64_t row, float* out) const;

  private:
    PackedWeight(Format format, int64_t n, int64_t k);
    struct Free {
        void operator()(uint8_t* p) const;
    };
    std::unique_ptr<uint8_t, Free> memory_;
    size_t bytes_ = 0;
    WeightView view_{};
};

}  // namespace kvern
