// The readers by format, in the order of KeyFormat and ValueFormat.
#pragma once
#include "bf16.h"
#include "bf16_tiles.h"
#include "int8.h"
#include "int8_tiles.h"
#include "kv4.h"
#include "kv4_hadamard.h"
#include "kv4_token.h"
#include "reader.h"

namespace kvern::KVERN_ISA_NS {

using WriteVector = void (*)(const KvLayout&, uint8_t* block, int slot, const float* x);

struct KeyReader {
    void (*scores)(Vectors&, const Pages&);
    WriteVector write;  // null: whole pages are sealed instead (kernels/kv_seal.cpp)
};
struct ValueReader {
    void (*add)(Vectors&, const Pages&);
    WriteVector write;
};

#if defined(KVERN_ISA_amx)
using Bf16KeysHere = Bf16TileKeys;
using Bf16ValuesHere = Bf16TileValues;
using Int8KeysHere = Int8TileKeys;
using Int8ValuesHere = Int8TileValues;
#else
using Bf16KeysHere = Bf16Keys;
using Bf16ValuesHere = Bf16Values;
using Int8KeysHere = Int8Keys;
using Int8ValuesHere = Int8Values;
#endif

constexpr KeyReader kKeyReaders[kKeyFormats] = {
    {Bf16KeysHere::scores, Bf16Keys::write}, {Int8KeysHere::scores, Int8Keys::write},
    {Token4Keys::scores, Token4Keys::write}, {Hadamard4Keys::scores, Hadamard4Keys::write},
    {Channel4Keys::scores, nullptr},
};
constexpr ValueReader kValueReaders[kValueFormats] = {
    {Bf16ValuesHere::add, Bf16Values::write},
    {Int8ValuesHere::add, Int8Values::write},
    {Token4Values::add, Token4Values::write},
};

}  // namespace kvern::KVERN_ISA_NS
