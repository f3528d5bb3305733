#include "kv_format.h"

#include <stdexcept>

namespace kvern {
namespace {

struct Named {
    const char* name;
    KvFormat format;
};
constexpr Named kNamed[] = {{"bf16", KvFormat::bf16},
                            {"kv8", KvFormat::kv8},
                            {"kv4", {KeyFormat::channel4, ValueFormat::token4}},
                            {"kv4-hadamard", {KeyFormat::hadamard4, ValueFormat::token4}},
                            {"kv4-token", {KeyFormat::token4, ValueFormat::token4}}};

KvFormat one(const std::string& name) {
    std::string known;
    for (const Named& named : kNamed) {
        if (name == named.name) return named.format;
        known += (known.empty() ? "" : ", ") + std::string(named.name);
    }
    throw std::invalid_argument("kv format '" + name + "' is not one of " + known);
}

}  // namespace

KvFormat parse_kv_format(const std::string& name) {
    const size_t slash = name.find('/');
    if (slash == std::string::npos) return one(name);
    return {one(name.substr(0, slash)).keys, one(name.substr(slash + 1)).values};
}

}  // namespace kvern
