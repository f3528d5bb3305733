// channel4: keys of whole pages in 4 bits, a step and a low for each channel (src/kvern/formats/kv/kv4.py).
//
// Codes lie as those of token4. Beside them: steps [padded_dim], then lows [padded_dim], float16, zeros after
// head_dim. A page is made at once, by `seal`, from the bf16 page that held its tokens until then.
#pragma once
#include "kv4_token.h"

namespace kvern::KVERN_ISA_NS {

struct Channel4Keys {
    // `from` is a full bf16 block of the same head, `at` the layout of `block`.
    static void seal(const KvLayout& at, uint8_t* block, const uint8_t* from) {
        const int words = Token4Keys::words(at.head_dim), padded = (at.head_dim + 15) / 16 * 16;
        auto* lines = reinterpret_cast<uint16_t*>(block + at.k_scale_offset);
        std::memset(lines, 0, 4 * static_cast<size_t>(padded));
        std::memset(block, 0, static_cast<size_t>(words) * kPageTokens * 4);
        for (int pair = 0; 2 * pair < at.head_dim; ++pair) {
            F16 even[4], odd[4];  // 64 tokens of two channels
            for (int g = 0; g < 4; ++g) {
                const I16 word = load(reinterpret_cast<const int32_t*>(from) + (g * (at.head_dim / 2) + pair) * 16);
                even[g] = as_float(low_half_as_high(word));
                odd[g] = as_float(high_half(word));
            }
            seal_channel(block, lines, words, padded, 2 * pair, even);
            seal_channel(block, lines, words, padded, 2 * pair + 1, odd);
        }
    }

    static void scores(Vectors& at, const Pages& pages) {
        for (int page = pages.begin; page < pages.end; ++page)
            in_runs<kNibbleVectors>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value;
                const Vectors::Range seen = at.seen(v, R, page);
                if (seen.begin < seen.end) score_page<R>(at, pages, page, v, seen);
            });
    }

  private:
    static void seal_channel(uint8_t* block, uint16_t* lines, int words, int padded, int d, const F16* x) {
        const F16 least = min(min(x[0], x[1]), min(x[2], x[3])), most = max(max(x[0], x[1]), max(x[2], x[3]));
        F16 check = splat(0.0f);
        for (int g = 0; g < 4; ++g) check = fma(x[g], splat(0.0f), check);
        const float spoiled = quick_sum(check);
        const Line line = line_between(-quick_max(splat(0.0f) - least) + spoiled, quick_max(most) + spoiled);
        lines[d] = line.step, lines[padded + d] = line.low;
        const float step = from_half(line.step), low = from_half(line.low);
        for (int g = 0; g < 4; ++g) {
            alignas(64) int32_t code[16];
            store(code, codes_on(x[g], step, low));
            uint8_t* bytes = block + static_cast<size_t>(g * words + d / 8) * 64 + d % 4;
            for (int i = 0; i < 16; ++i)
                bytes[4 * i] = static_cast<uint8_t>(bytes[4 * i] | code[i] << (d % 8 < 4 ? 0 : 4));
        }
    }

    // Steps go to the query, channel by channel; lows make one number for all tokens of the page.
    template <int R>
    static void score_page(const Vectors& at, const Pages& pages, int page, int v, Vectors::Range seen) {
        const uint8_t* block = pages.block(page);
        const auto* lines = reinterpret_cast<const uint16_t*>(block + pages.layout(page).k_scale_offset);
        Numbers numbers[R];
        float scale[R], offset[R];
        for (int r = 0; r < R; ++r) {
            uint8_t* bytes = at.spare + 2 * r * at.padded_dim;
            numbers[r] = {bytes, at.padded_dim};
            scale[r] = bend(at, v + r, lines, bytes, &offset[r]);
        }
        int group = seen.begin / 16;
        const int end = (seen.end + 15) / 16;
        for (; group + kNibbleGroups <= end; group += kNibbleGroups)
            score_groups<R, kNibbleGroups>(at, pages, page, v, group, numbers, scale, offset);
        for (; group < end; ++group) score_groups<R, 1>(at, pages, page, v, group, numbers, scale, offset);
    }

    // The query of vector v times the steps, as numbers at `bytes`, and times the lows, summed; returns the scale.
    static float bend(const Vectors& at, int v, const uint16_t* lines, uint8_t* bytes, float* offset) {
        alignas(64) float bent[kMaxHeadDim];
        F16 sum = splat(0.0f);
        const float* q = at.query(v);
        for (int d = 0; d < at.padded_dim; d += 16) {
            store(bent + d, load(q + d) * from_f16(lines + d));
            sum = fma(load(q + d), from_f16(lines + at.padded_dim + d), sum);
        }
        *offset = quick_sum(sum);
        return to_nibble_numbers(bent, at.padded_dim, bytes);
    }

    template <int R, int G>
    static void score_groups(const Vectors& at, const Pages& pages, int page, int v, int group,
                             const Numbers* numbers, const float* scale, const float* offset) {
        const int words = Token4Keys::words(at.head_dim);
        I16 sums[R * G];
        dot_both<R, G>(pages.block(page) + static_cast<size_t>(group * words) * 64, words, numbers, sums);
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < G; ++g)
                store(at.page_scores(v + r, pages, page) + 16 * (group + g),
                      fma(to_float(sums[r * G + g]), splat(scale[r]), splat(offset[r])));
    }
};

}  // namespace kvern::KVERN_ISA_NS
