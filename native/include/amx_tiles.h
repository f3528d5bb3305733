// The AMX tile product over the whole of K, for formats whose sums need no float work before the end (row scales,
// bf16). For formats folded group by group see amx_groups.h. Empty on other instruction sets.
//
// A format plugs in as a struct and one line in its fill function, after the rows kernels have been set:
//
//     struct MyTiles {
//         static constexpr Product kProduct = Product::unsigned_bytes;  // type of the weight operand
//         static constexpr bool kInPlace = false;  // the packed tile holds the operand as it is: expand only points
//         // Step `step` of the tile's 16 outputs as the weight operand, 1024 bytes: bytes [16][16 outputs][4 inputs]
//         // of inputs 64 step.., or bf16 [16][16 outputs][2 inputs] of inputs 32 step... Written to `to` (64-byte
//         // aligned) and `to` returned; or, with kInPlace, a pointer into the tile such that step + 1 lies 1024 on.
//         static const uint8_t* expand(const WeightView&, const uint8_t* tile, int64_t step, uint8_t* to);
//         // Outputs of one row from its sums over K (bf16: float sums, see as_float).
//         static F16 finish(const LinearWork&, const uint8_t* tile, int64_t row, I16 sums);
//     };
//     TileRoute<whole_k_pass<MyTiles>, Format::mine, RowCode::q8_row>::set(table);
//
// The rows' codes must be padded to a multiple of 64 bytes (RowCode::q8_row, bf16 and the groups of 64 are).
//
// Loops: two weight tiles (32 outputs) are expanded once for all rows of the call; blocks of 32 rows run over them as
// 2 x 2 sum tiles; the float work of a block is done between the tile products of the next one, because K = 576 is
// only 9 steps and the float work of a block takes as long as they do. Integer sums are exact, so results are those
// of the rows kernels to the bit.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "dispatch.h"
#include "lanes.h"
#include "rows_by_tile.h"

#if defined(KVERN_ISA_amx)
namespace kvern::KVERN_ISA_NS {

enum class Product { unsigned_bytes, signed_bytes, bf16 };

constexpr int64_t kFewestRows = 8;  // fewer rows take the rows kernel: a tile product costs the same for 1 and 16
constexpr int64_t kOperandBytes = 1024;  // of one weight operand: 16 tile rows of 64 bytes

// GCC 12 gives the tile instructions no memory operands: say so around them.
inline void memory_is_written() { __asm__ volatile("" ::: "memory"); }

// Tiles 0..3 are sums (0, 1: upper rows; 2, 3: lower rows), 4 and 5 the upper and lower rows of activations, 6 and 7
// weights. `bytes` (a multiple of 4, 64 at most) is what one product takes of a row.
class TileShapes {
  public:
    TileShapes(int upper_rows, int lower_rows, int bytes) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_per_row[16] = {};
            uint8_t rows[16] = {};
        } config;
        const int rows[8] = {upper_rows, upper_rows, lower_rows, lower_rows,
                             upper_rows, lower_rows, bytes / 4,  bytes / 4};
        for (int tile = 0; tile < 8; ++tile) {
            config.bytes_per_row[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? bytes : 64);
            config.rows[tile] = static_cast<uint8_t>(rows[tile] ? rows[tile] : 1);
        }
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    ~TileShapes() { _tile_release(); }
    TileShapes(const TileShapes&) = delete;
    TileShapes& operator=(const TileShapes&) = delete;
};

// Sums tile C += activations tile A x weights tile B; the numbers must be literals.
#define KVERN_TILE_PRODUCT(KIND, C, A, B)                   \
    do {                                                    \
        if constexpr ((KIND) == Product::bf16)              \
            _tile_dpbf16ps(C, A, B);                        \
        else if constexpr ((KIND) == Product::signed_bytes) \
            _tile_dpbssd(C, A, B);                          \
        else                                                \
            _tile_dpbsud(C, A, B);                          \
    } while (false)

// Brings memory that will be needed soon into the second-level cache, a few lines at a time.
class Prefetch {
  public:
    Prefetch(const uint8_t* begin, int64_t bytes, int64_t calls)
        : at_(begin), end_(begin + bytes), lines_((bytes / 64 + calls) / (calls ? calls : 1)) {}
    void some() {
        for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += 64)
            _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
    }

  private:
    const uint8_t *at_, *end_;
    int64_t lines_;
};

// Up to 32 rows x 2 tiles of outputs.
struct TileBlock {
    int64_t row, tile;
    int rows, tiles;
};

// Finished sums of one block, turned into outputs a few rows at a time.
template <class F>
class Epilogue {
  public:
    explicit Epilogue(const LinearWork& work) : work_(work) {}

    // Where the sums of `block` go (32 rows of tile 0, then of tile 1); the block before must be finished.
    int32_t* begin(const TileBlock& block) {
        block_ = block;
        at_ = 0;
        which_ ^= 1;
        return sums_[which_];
    }
    void some(int count) {
        while (count > 0 && at_ < block_.rows * block_.tiles) {
            const int tile = at_ >= block_.rows, row = at_ - tile * block_.rows;
            const int now = count < block_.rows - row ? count : block_.rows - row;
            finish_rows(tile, row, now);
            at_ += now;
            count -= now;
        }
    }
    void finish() { some(64); }

  private:
    void finish_rows(int tile, int first, int rows) {
        const int64_t output = (block_.tile + tile) * 16, row = block_.row + first, stride = work_.y_stride;
        const uint8_t* packed = work_.weight.data + (block_.tile + tile) * work_.weight.tile_bytes;
        const int32_t* sums = sums_[which_] + (tile * 32 + first) * 16;
        const bool plain = work_.weight.n - output >= 16 && !work_.bias;
        float* to = work_.y + row * stride + output;
        for (int r = 0; r < rows; ++r, sums += 16, to += stride) {
            const F16 y = F::finish(work_, packed, row + r, load(sums));
            if (plain)
                store(to, y);
            else
                store_rows(work_, &y, row + r, 1, output);
        }
    }

    const LinearWork& work_;
    TileBlock block_{};
    int at_ = 0, which_ = 0;
    alignas(64) int32_t sums_[2][2 * 32 * 16];  // two, so that storing one need not wait for reads of the other
};

// Operands of one block over K: rows at `upper` and, M = 2, `lower`; weights at `first` and, N = 2, `second`.
struct TileOperands {
    const uint8_t *upper, *lower;
    int64_t row_bytes;  // from row to row
    const uint8_t *first, *second;
    int64_t steps;
};

// M x N sum tiles over all steps; `between` runs after the products of every step. The sums stay in tiles 0..3.
template <Product KIND, int M, int N, class Between>
inline void sum_tiles(const TileOperands& x, Between&& between) {
    _tile_zero(0);
    if constexpr (N == 2) _tile_zero(1);
    if constexpr (M == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
    for (int64_t s = 0; s < x.steps; ++s) {
        _tile_loadd(6, x.first + s * kOperandBytes, 64);
        _tile_loadd(4, x.upper + s * 64, x.row_bytes);
        KVERN_TILE_PRODUCT(KIND, 0, 4, 6);
        if constexpr (N == 2) {
            _tile_loadd(7, x.second + s * kOperandBytes, 64);
            KVERN_TILE_PRODUCT(KIND, 1, 4, 7);
        }
        if constexpr (M == 2) {
            _tile_loadd(5, x.lower + s * 64, x.row_bytes);
            KVERN_TILE_PRODUCT(KIND, 2, 5, 6);
            if constexpr (N == 2) KVERN_TILE_PRODUCT(KIND, 3, 5, 7);
        }
        between();
    }
}

template <int M, int N>
inline void store_sums(int32_t* to) {
    _tile_stored(0, to, 64);
    if constexpr (N == 2) _tile_stored(1, to + 32 * 16, 64);
    if constexpr (M == 2) _tile_stored(2, to + 16 * 16, 64);
    if constexpr (M == 2 && N == 2) _tile_stored(3, to + 48 * 16, 64);
    memory_is_written();
}

// Two weight tiles (or the last one) ready for all rows of a call.
template <class F>
class TilePanel {
  public:
    TilePanel(const WeightView& weight, int64_t tile, int64_t steps) {
        for (int64_t i = 0; i < 2; ++i) {
            const uint8_t* packed = weight.data + (tile + i) * weight.tile_bytes;
            if (i == 1 && tile + 1 >= (weight.n + 15) / 16) break;
            if constexpr (F::kInPlace) {
                at_[i] = F::expand(weight, packed, 0, nullptr);
            } else {
                uint8_t* to = panel_memory(2 * steps * kOperandBytes) + i * steps * kOperandBytes;
                for (int64_t s = 0; s < steps; ++s) F::expand(weight, packed, s, to + s * kOperandBytes);
                at_[i] = to;
            }
        }
        memory_is_written();
    }
    const uint8_t* at(int i) const { return at_[i]; }

  private:
    const uint8_t* at_[2] = {nullptr, nullptr};
};

template <class F>
class WholeK {
  public:
    explicit WholeK(const LinearWork& work) : work_(work), epilogue_(work) {
        constexpr bool halves = F::kProduct == Product::bf16;
        const EncodedRows& x = *work.x;
        row_bytes_ = x.stride * (halves ? 2 : 1);
        rows_ = halves ? reinterpret_cast<const uint8_t*>(x.bf16) : reinterpret_cast<const uint8_t*>(x.codes);
        steps_ = row_bytes_ / 64;
    }

    // Rows [row_begin, row_end) in blocks of `height` rows; the tiles are configured for it.
    template <int M>
    void run(int64_t row_begin, int64_t row_end, int height, int64_t tile_begin, int64_t tile_end) {
        const int64_t blocks = (row_end - row_begin) / height;
        for (int64_t t = tile_begin; t < tile_end; t += 2) {
            const TilePanel<F> panel(work_.weight, t, steps_);
            const int64_t left = tile_end - t > 4 ? 2 : tile_end - t - 2 > 0 ? tile_end - t - 2 : 0;
            Prefetch next(work_.weight.data + (t + 2) * work_.weight.tile_bytes, left * work_.weight.tile_bytes,
                          blocks * steps_);
            for (int64_t row = row_begin; row < row_end; row += height) {
                if (tile_end - t >= 2)
                    block<M, 2>({row, t, height, 2}, panel, next);
                else
                    block<M, 1>({row, t, height, 1}, panel, next);
            }
        }
        epilogue_.finish();
    }

  private:
    template <int M, int N>
    void block(const TileBlock& block, const TilePanel<F>& panel, Prefetch& next) {
        const uint8_t* upper = rows_ + block.row * row_bytes_;
        const TileOperands operands{upper, upper + 16 * row_bytes_, row_bytes_, panel.at(0), panel.at(1), steps_};
        const int share = static_cast<int>((64 + steps_ - 1) / steps_);
        sum_tiles<F::kProduct, M, N>(operands, [&] {
            next.some();
            epilogue_.some(share);
        });
        epilogue_.finish();
        store_sums<M, N>(epilogue_.begin(block));
    }

    const LinearWork& work_;
    Epilogue<F> epilogue_;
    const uint8_t* rows_;
    int64_t row_bytes_, steps_;
};

// A TilesKernel for any number of rows: blocks of 32, then what is left as one smaller block.
template <class F>
void whole_k_pass(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "tiles";
    WholeK<F> product(work);
    const int64_t full = row_begin + (row_end - row_begin) / 32 * 32;
    const int left = static_cast<int>(row_end - full);
    if (full > row_begin) {
        const TileShapes shapes(16, 16, 64);
        product.template run<2>(row_begin, full, 32, tile_begin, tile_end);
    }
    if (left > 16) {
        const TileShapes shapes(16, left - 16, 64);
        product.template run<2>(full, row_end, left, tile_begin, tile_end);
    } else if (left > 0) {
        const TileShapes shapes(left, 0, 64);
        product.template run<1>(full, row_end, left, tile_begin, tile_end);
    }
}

// Puts PASS in front of the kernel already in the table, which keeps calls of fewer than FEWEST rows.
template <TilesKernel PASS, Format F, RowCode CODE, int64_t FEWEST = kFewestRows>
struct TileRoute {
    static inline TilesKernel few = nullptr;
    static void run(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin,
                    int64_t tile_end) {
        const TilesKernel kernel = row_end - row_begin < FEWEST ? few : PASS;
        kernel(work, row_begin, row_end, tile_begin, tile_end);
    }
    static void set(KernelTable& table) {
        TilesKernel& entry = table.linear.at(F, CODE);
        few = entry;
        entry = run;
    }
};

}  // namespace kvern::KVERN_ISA_NS
#endif
