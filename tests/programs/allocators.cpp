/* The same with the operators of C++. */
#include "allocators.c"
