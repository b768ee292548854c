// Which instruction set the kernels run on: the best that the processor has, chosen once.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
  #define FASTINPAINT_X86 1
  #include <immintrin.h>
#else
  #define FASTINPAINT_X86 0
#endif

namespace fastinpaint {

enum class Isa { baseline, avx2, avx512 };

// FASTINPAINT_ISA=baseline|avx2|avx512 lowers the choice (for tests); asking for more than there is changes
// nothing.
Isa active_isa();

// "baseline", "avx2" or "avx512".
const char* isa_name(Isa isa);

}  // namespace fastinpaint

// Calls FUNCTION from the namespace of the active instruction set; see foreach_isa.inc.
#if FASTINPAINT_X86
  #define FASTINPAINT_DISPATCH(FUNCTION, ...)                                                  \
    (::fastinpaint::active_isa() == ::fastinpaint::Isa::avx512 ? avx512::FUNCTION(__VA_ARGS__) \
     : ::fastinpaint::active_isa() == ::fastinpaint::Isa::avx2 ? avx2::FUNCTION(__VA_ARGS__)   \
                                                               : baseline::FUNCTION(__VA_ARGS__))
#else
  #define FASTINPAINT_DISPATCH(FUNCTION, ...) baseline::FUNCTION(__VA_ARGS__)
#endif
