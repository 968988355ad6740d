// The code of avx512vnni.cpp for processors that multiply bfloat16 too; only the flags differ.
#include "avx512vnni.cpp"
