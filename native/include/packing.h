// Owns a packed weight matrix: made from the bytes of a file or from float32 rows, read back row by row.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "packed_weight.h"

namespace kvern {

class Pool;

// Lower or upper case, '-' or '_'; throws std::invalid_argument naming the known ones.
Format parse_format(const std::string& name);

// What the caller of from_blocks hands over: whole rows in the file's order.
struct FileRows {
    const uint8_t* data;
    size_t bytes;
    const int32_t* order = nullptr;  // output i is file row order[i]; null: i, and n rows exactly
    int32_t parts = 0;               // how many to bring in, of a format that has parts; 0: all
};

class PackedWeight {
  public:
    // The header is copied. Throws std::invalid_argument when a size, a row number, the header or the format does not
    // fit.
    static PackedWeight from_blocks(Format format, const WeightShape& shape, const FileRows& rows, Pool* pool);
    // f32, bf16 (nearest even) or w8a8 (scale = max|w| / 127 per output) from float32 [n][k]; w8a8 refuses values
    // that are not finite.
    static PackedWeight from_float(Format format, const float* data, int64_t n, int64_t k, Pool* pool);

    const WeightView& view() const { return view_; }
    size_t bytes() const { return bytes_ + header_.size(); }
    // Of a format kept in parts: how many there are, how many are in memory, bytes of each. 1, 1, bytes() for others.
    int32_t parts() const { return parts_.empty() ? 1 : static_cast<int32_t>(parts_.size()); }
    int32_t resident_parts() const { return parts_.empty() ? 1 : view_.resident; }
    size_t part_bytes() const { return parts_.empty() ? bytes() : bytes_ / static_cast<size_t>(view_.resident); }
    // Lets go of the parts from `count` on.
    void keep_parts(int32_t count);
    // Brings parts in until `count` are in memory, from the rows and the header that the weight was made from. Nobody
    // may read the weight meanwhile. Throws std::invalid_argument, leaving the weight as it was.
    void add_parts(int32_t count, const WeightShape& shape, const FileRows& rows, Pool* pool);
    // Output `row` as float32[k]: exactly d * code + m. `row` must be in [0, n).
    void row(int64_t row, float* out) const;

  private:
    PackedWeight(Format format, const WeightShape& shape);
    struct Free {
        void operator()(uint8_t* p) const;
    };
    using Memory = std::unique_ptr<uint8_t, Free>;
    static Memory allocate(size_t bytes);
    Memory memory_;
    std::vector<Memory> parts_;
    std::vector<const uint8_t*> part_data_;
    std::vector<uint8_t> header_;
    size_t bytes_ = 0;
    WeightView view_{};
};

}  // namespace kvern
