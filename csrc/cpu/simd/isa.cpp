#include "cpu/simd/isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastinpaint {
namespace {

Isa supported_isa() {
#if FASTINPAINT_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa choose_isa() {
  const char* wanted = std::getenv("FASTINPAINT_ISA");
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (wanted != nullptr && std::strcmp(wanted, isa_name(isa)) == 0) return std::min(isa, supported_isa());
  return supported_isa();
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace fastinpaint
