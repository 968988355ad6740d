// Which instruction set runs: the best one of this processor, or the one that was asked for.
#include "isa.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace vlaq {

// Files that this compiler could not compile (see sources.txt) have no kernels.
#if defined(__x86_64__) && !defined(VLAQ_HAVE_AVX512VNNI)
const Kernels* kernels_avx512vnni() { return nullptr; }
#endif
#if defined(__x86_64__) && !defined(VLAQ_HAVE_AVX512BF16)
const Kernels* kernels_avx512bf16() { return kernels_avx512vnni(); }
#endif
#if defined(__x86_64__) && !defined(VLAQ_HAVE_AVXVNNI)
const Kernels* kernels_avxvnni() { return nullptr; }
#endif
#if defined(__x86_64__) && !defined(VLAQ_HAVE_AVX2)
const Kernels* kernels_avx2() { return nullptr; }
#endif
#if defined(__aarch64__) && !defined(VLAQ_HAVE_NEON)
const Kernels* kernels_neon() { return nullptr; }
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels* (*kernels)();  // null when this processor cannot run it
};

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers.
const Kernels* avx512vnni() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vnni"))
    return nullptr;
  return __builtin_cpu_supports("avx512bf16") ? kernels_avx512bf16() : kernels_avx512vnni();
}

const Kernels* avx2() {
  __builtin_cpu_init();
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("f16c");
  return has ? kernels_avx2() : nullptr;
}

// CPUID leaf 7, subleaf 1, EAX bit 4; compilers ask for it by name only since GCC 14.
const Kernels* avxvnni() {
  unsigned eax = 0, ebx, ecx, edx;
  const bool has = avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
  return has ? kernels_avxvnni() : nullptr;
}
#elif defined(__aarch64__)
const Kernels* neon() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? kernels_neon() : nullptr; }
#endif

const Choice CHOICES[] = {  // best first
#if defined(__x86_64__)
    {"avx512vnni", avx512vnni},
    {"avxvnni", avxvnni},
    {"avx2", avx2},
#elif defined(__aarch64__)
    {"neon", neon},
#endif
    {"portable", kernels_portable},
};

const Kernels* find(const char* name) {
  for (const Choice& choice : CHOICES)
    if (!strcmp(choice.name, name)) return choice.kernels();
  return nullptr;
}

const Kernels* first_choice() {
  if (const char* name = getenv("VLAQ_ISA"))
    if (*name) return find(name);
  for (const Choice& choice : CHOICES)
    if (const Kernels* kernels = choice.kernels()) return kernels;
  return nullptr;
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

const Kernels* active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) {
    kernels = first_choice();  // two threads at once find the same one
    active.store(kernels, std::memory_order_release);
  }
  return kernels;
}

}  // namespace vlaq

using namespace vlaq;

extern "C" const char* vlaq_isa(void) {
  const Kernels* kernels = active_kernels();
  return kernels ? kernels->name : "";
}

extern "C" int vlaq_set_isa(const char* name) {
  const Kernels* kernels = name ? find(name) : nullptr;
  if (!kernels) return VLAQ_ERROR_ISA;
  active.store(kernels, std::memory_order_release);
  return VLAQ_OK;
}

extern "C" const char* vlaq_available_isas(void) {
  static const std::string names = [] {
    std::string list;
    for (const Choice& choice : CHOICES)
      if (choice.kernels()) list += (list.empty() ? "" : ",") + std::string(choice.name);
    return list;
  }();
  return names.c_str();
}
