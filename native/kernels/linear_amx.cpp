// K3 and K4 on AMX tiles; sets nothing on other instruction sets.
//
// Integer formats give the same bits as the rows kernels, so fewer than 8 rows are left to those. The step along K is
// the group of 32 (16 for q6_k), so that groups fold in the same float order. bf16 uses tiles for every row count.
#include "dispatch.h"
#include "lanes.h"
#include "linear.h"
#include "rows_by_tile.h"

#if defined(KVERN_ISA_amx)
namespace kvern::KVERN_ISA_NS {
namespace {

constexpr int kFewRows = 8;  // below: the rows kernels
using TilesKernel = void (*)(const LinearWork&, int64_t, int64_t, int64_t, int64_t);

// GCC 12 gives the tile instructions no memory operands: say so around them.
inline void memory_is_written() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0..3 are sums, 4 (and 5) rows of activations of `bytes` each, 6 (and 7) weights.
class Tiles {
  public:
    Tiles(int rows, int bytes) {
        TileConfig config;
        for (int tile = 0; tile < 8; ++tile) {
            config.bytes_per_row[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? bytes : 64);
            config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : bytes / 4);
        }
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

struct alignas(64) Scratch {
    uint8_t codes[8 * kPlane];
    int32_t sums[2][16][16];
};

struct Block {
    const LinearWork& work;
    int64_t row;
    int rows;
    const EncodedRows& x() const { return *work.x; }
    const int8_t* codes(int64_t k) const { return x().codes + row * x().stride + k; }
};

template <int BITS>
inline void unpack(const uint8_t* planes, Scratch& scratch) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step)
        _mm512_store_si512(scratch.codes + step * kPlane, codes_at<BITS>(planes, step));
    memory_is_written();
}

// Sums of one group of 32 for all rows of the block.
template <int BITS>
inline void group_sums(const Block& block, const uint8_t* planes, int64_t g, Scratch& scratch) {
    unpack<BITS>(planes, scratch);
    _tile_zero(0);
    _tile_loadd(4, block.codes(g * 32), block.x().stride);
    _tile_loadd(6, scratch.codes, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_stored(0, scratch.sums[0], 64);
    memory_is_written();
}

inline void fold(const Block& block, int64_t g, F16 d, const F16* m, int32_t offset, Scratch& scratch, F16* acc) {
    for (int r = 0; r < block.rows; ++r) {
        const int64_t at = (block.row + r) * block.x().groups + g;
        I16 dot = load(scratch.sums[0][r]);
        if (offset) dot = dot + splat(-offset * block.x().sums[at]);
        acc[r] = fma(to_float(dot), splat(block.x().scales[at]) * d, acc[r]);
        if (m) acc[r] = fma(splat(block.x().scaled_sums[at]), *m, acc[r]);
    }
}

inline F16 halves(const uint8_t* p) { return from_f16(reinterpret_cast<const uint16_t*>(p)); }

template <Format F>
void simple_block(const Block& block, const uint8_t* tile, Scratch& scratch, F16* acc) {
    constexpr bool five = F == Format::q5_0 || F == Format::q5_1, eight = F == Format::q8_0;
    constexpr bool two = F == Format::q4_1 || F == Format::q5_1;
    constexpr int bits = eight ? 8 : five ? 5 : 4, header = two ? 64 : 32;
    for (int64_t g = 0; g < block.x().groups; ++g, tile += header + plane_bytes(bits)) {
        const F16 d = halves(tile);
        const F16 m = two ? halves(tile + 32) : splat(five ? -16.0f : -8.0f) * d;
        group_sums<bits>(block, tile + header, g, scratch);
        fold(block, g, d, eight ? nullptr : &m, eight ? 128 : 0, scratch, acc);
    }
}

template <Format F>
void super_block(const Block& block, const uint8_t* tile, Scratch& scratch, F16* acc) {
    constexpr int bits = F == Format::q5_k ? 5 : 4;
    for (int64_t g = 0; g < block.x().groups; g += 8) {
        const F16 d = halves(tile), dmin = splat(0.0f) - halves(tile + 32);
        const auto* scales = reinterpret_cast<const int8_t*>(tile + 64);
        tile += 64 + 256;
        for (int i = 0; i < 8; ++i, scales += 16, tile += plane_bytes(bits)) {
            const F16 m = dmin * from_i8(scales + 128);
            group_sums<bits>(block, tile, g + i, scratch);
            fold(block, g + i, d * from_i8(scales), &m, 0, scratch, acc);
        }
    }
}

inline void q6_sums(const Block& block, const uint8_t* planes, int64_t g, Scratch& scratch) {
    unpack<6>(planes, scratch);
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(4, block.codes(g * 32), block.x().stride);
    _tile_loadd(5, block.codes(g * 32 + 16), block.x().stride);
    _tile_loadd(6, scratch.codes, 64);
    _tile_loadd(7, scratch.codes + 4 * kPlane, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 5, 7);
    _tile_stored(0, scratch.sums[0], 64);
    _tile_stored(1, scratch.sums[1], 64);
    memory_is_written();
}

void q6_block(const Block& block, const uint8_t* tile, Scratch& scratch, F16* acc) {
    for (int64_t g = 0; g < block.x().groups; g += 8) {
        const F16 d = halves(tile);
        const uint8_t* scales = tile + 32;
        tile += 32 + 256;
        for (int i = 0; i < 8; ++i, scales += 32, tile += plane_bytes(6)) {
            q6_sums(block, tile, g + i, scratch);
            for (int r = 0; r < block.rows; ++r) {
                const int64_t at = (block.row + r) * block.x().groups + g + i;
                const I16 dot = combine_halves(load(scratch.sums[0][r]), load(scratch.sums[1][r]), scales,
                                               block.x().half_sums + 2 * at);
                acc[r] = fma(to_float(dot), splat(block.x().scales[at]) * d, acc[r]);
            }
        }
    }
}

template <Format F>
void blocks_pass(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    const int rows = row_end - row_begin < 16 ? static_cast<int>(row_end - row_begin) : 16;
    if (work.route) *work.route = "tiles";
    const Tiles tiles(rows, F == Format::q6_k ? 16 : 32);
    Scratch scratch;
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        const uint8_t* tile = work.weight.data + t * work.weight.tile_bytes;
        for (int64_t row = row_begin; row < row_end; row += rows) {
            F16 acc[16];
            for (F16& lane : acc) lane = splat(0.0f);
            const Block block{work, row, rows};
            if constexpr (F == Format::q6_k)
                q6_block(block, tile, scratch, acc);
            else if constexpr (F == Format::q4_k || F == Format::q5_k)
                super_block<F>(block, tile, scratch, acc);
            else
                simple_block<F>(block, tile, scratch, acc);
            store_rows(work, acc, row, rows, t * 16);
        }
    }
}

// Full blocks of 16 rows, then one smaller block, or the rows kernel when too few are left.
template <TilesKernel PASS, int FEWEST>
void by_sixteen(const LinearWork& work, TilesKernel few, int64_t row_begin, int64_t row_end, int64_t tile_begin,
                int64_t tile_end) {
    const int64_t full = row_begin + (row_end - row_begin) / 16 * 16;
    if (row_end - full > 0 && row_end - full < FEWEST) few(work, full, row_end, tile_begin, tile_end);
    if (row_end - full >= FEWEST) PASS(work, full, row_end, tile_begin, tile_end);
    if (full > row_begin) PASS(work, row_begin, full, tile_begin, tile_end);
}

// C 1 x N tiles, K steps of one 64-byte tile row; the sums stay in tiles over all of K.
template <bool BF16, int N>
inline void wide_sums(const uint8_t* a, int64_t a_bytes, const uint8_t* b, int64_t tile_bytes, int64_t steps) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#define KVERN_STEP(C)                                      \
    if constexpr (N > C) {                                 \
        _tile_loadd(6, b + C * tile_bytes + s * 1024, 64); \
        if constexpr (BF16)                                \
            _tile_dpbf16ps(C, 4, 6);                       \
        else                                               \
            _tile_dpbsud(C, 4, 6);                         \
    }
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(4, a + s * 64, a_bytes);
        KVERN_STEP(0)
        KVERN_STEP(1)
        KVERN_STEP(2)
        KVERN_STEP(3)
    }
#undef KVERN_STEP
}

template <bool BF16>
void store_wide(const Block& block, const int32_t (*sums)[16], const uint8_t* tile, int64_t output) {
    F16 acc[16];
    for (int r = 0; r < block.rows; ++r) {
        const I16 sum = load(sums[r]);
        if constexpr (BF16) {
            acc[r] = as_float(sum);
        } else {
            const F16 scale = load(reinterpret_cast<const float*>(tile));
            const int64_t row = block.row + r;
            acc[r] = (to_float(sum + splat(-128 * block.x().sums[row])) * splat(block.x().scales[row])) * scale;
        }
    }
    store_rows(block.work, acc, block.row, block.rows, output);
}

template <bool BF16, int N>
void wide_block(const Block& block, int64_t t) {
    alignas(64) int32_t sums[4][16][16];
    const LinearWork& work = block.work;
    const EncodedRows& x = block.x();
    constexpr int header = BF16 ? 0 : 64;
    const int64_t bytes = x.stride * (BF16 ? 2 : 1);
    const auto* a = (BF16 ? reinterpret_cast<const uint8_t*>(x.bf16) : reinterpret_cast<const uint8_t*>(x.codes));
    const uint8_t* tile = work.weight.data + t * work.weight.tile_bytes;
    wide_sums<BF16, N>(a + block.row * bytes, bytes, tile + header, work.weight.tile_bytes, bytes / 64);
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    memory_is_written();
    for (int i = 0; i < N; ++i) store_wide<BF16>(block, sums[i], tile + i * work.weight.tile_bytes, (t + i) * 16);
}

template <bool BF16>
void wide_pass(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    const int rows = row_end - row_begin < 16 ? static_cast<int>(row_end - row_begin) : 16;
    if (work.route) *work.route = "tiles";
    const Tiles tiles(rows, 64);
    int64_t t = tile_begin;
    for (; tile_end - t >= 4; t += 4)
        for (int64_t row = row_begin; row < row_end; row += rows) wide_block<BF16, 4>({work, row, rows}, t);
    for (; t < tile_end; ++t)
        for (int64_t row = row_begin; row < row_end; row += rows) wide_block<BF16, 1>({work, row, rows}, t);
}

template <TilesKernel PASS, Format F, int FEWEST>
struct Route {
    static inline TilesKernel few = nullptr;
    static void run(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin,
                    int64_t tile_end) {
        by_sixteen<PASS, FEWEST>(work, few, row_begin, row_end, tile_begin, tile_end);
    }
    static void set(KernelTable& table) {
        TilesKernel& entry = table.linear.tiles[static_cast<int>(F)];
        few = entry;
        entry = run;
    }
};

template <Format F>
void set_blocks(KernelTable& table) {
    Route<blocks_pass<F>, F, kFewRows>::set(table);
}

}  // namespace

void fill_linear_amx(KernelTable& table) {
    set_blocks<Format::q4_0>(table);
    set_blocks<Format::q4_1>(table);
    set_blocks<Format::q5_0>(table);
    set_blocks<Format::q5_1>(table);
    set_blocks<Format::q8_0>(table);
    set_blocks<Format::q4_k>(table);
    set_blocks<Format::q5_k>(table);
    set_blocks<Format::q6_k>(table);
    Route<wide_pass<false>, Format::w8a8, kFewRows>::set(table);
    Route<wide_pass<true>, Format::bf16, 1>::set(table);
    table.linear.bf16_rows = RowCode::bf16;
}

}  // namespace kvern::KVERN_ISA_NS
#else
namespace kvern::KVERN_ISA_NS {
void fill_linear_amx(KernelTable&) {}
}  // namespace kvern::KVERN_ISA_NS
#endif
