/* Gives libFuzzer's coverage functions precedence over the empty ones of libasan, for `make fuzz`.

   atheris reports coverage by calling the functions below. libFuzzer, which is a part of atheris, has them. libasan has
   weak and empty ones. It must be loaded first, so the dynamic linker would take those. This library is loaded before
   libasan, and passes each call on to LIBFUZZER, the path of atheris' extension. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

static void *own(const char *name) {
    static void *library;
    if (library == 0) {
        library = dlopen(LIBFUZZER, RTLD_LAZY | RTLD_NOLOAD);
    }
    return library == 0 ? 0 : dlsym(library, name);
}

#define FORWARD(name, type)                          \
    void name(type a, type b) {                      \
        static void (*function)(type, type);         \
        if (function == 0) {                         \
            function = (void (*)(type, type)) own(#name); \
        }                                            \
        if (function != 0) {                         \
            function(a, b);                          \
        }                                            \
    }

FORWARD(__sanitizer_cov_8bit_counters_init, const uint8_t *)
FORWARD(__sanitizer_cov_pcs_init, const uintptr_t *)
FORWARD(__sanitizer_cov_trace_cmp8, uint64_t)
FORWARD(__sanitizer_cov_trace_const_cmp8, uint64_t)
