// What each of the two Python modules, `_C` and `_C_cuda`, holds once. `import` loads the library, which
// registers its operators; the module itself is empty.
#pragma once

#include <Python.h>

#define FASTINPAINT_MODULE(NAME)                                                                 \
  extern "C" __attribute__((visibility("default"))) PyObject* PyInit_##NAME(void) {              \
    static PyModuleDef definition = {                                                            \
        PyModuleDef_HEAD_INIT, #NAME, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    PyObject* module = PyModule_Create(&definition);                                             \
    FASTINPAINT_NEEDS_NO_GIL(module);                                                            \
    return module;                                                                               \
  }

#ifdef Py_GIL_DISABLED  // free-threaded Python turns the GIL back on for modules that do not say this
  #define FASTINPAINT_NEEDS_NO_GIL(module) \
    if (module != nullptr) PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED)
#else
  #define FASTINPAINT_NEEDS_NO_GIL(module)
#endif

// Symbols that bind a library to a newer glibc than 2.28, the oldest that wheels are built for
// (manylinux_2_28).
#ifdef __GLIBC__
extern "C" {
// Of glibc 2.32. std::shared_ptr counts without atomic instructions where it is true.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

  #ifdef __x86_64__
// Of glibc 2.29: the same function without a wrapper that sets errno. Linked with -Wl,--wrap=exp.
double exp_of_glibc_2_2_5(double x);
__asm__(".symver exp_of_glibc_2_2_5, exp@GLIBC_2.2.5");
__attribute__((visibility("hidden"))) double __wrap_exp(double x) {
  return exp_of_glibc_2_2_5(x);
}
  #endif
}
#endif
