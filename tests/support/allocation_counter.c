/* Counts what is allocated by the code between two addresses, and the largest allocation of anybody; to be preloaded. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

static uintptr_t first, last;
static long counted;
static size_t largest;

static void note(const void* caller, size_t size) {
  if ((uintptr_t)caller >= first && (uintptr_t)caller < last) __atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED);
  if (size > largest) largest = size;
}

void begin_counting(const void* from, const void* to) {
  first = (uintptr_t)from;
  last = (uintptr_t)to;
  counted = 0;
  largest = 0;
}
long allocations(void) { return counted; }
size_t largest_allocation(void) { return largest; }

void* malloc(size_t size) {
  note(__builtin_return_address(0), size);
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  note(__builtin_return_address(0), count * size);
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  note(__builtin_return_address(0), size);
  return __libc_realloc(memory, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  note(__builtin_return_address(0), size);
  *memory = __libc_memalign(alignment, size);
  return *memory ? 0 : 12;
}
void* aligned_alloc(size_t alignment, size_t size) {
  note(__builtin_return_address(0), size);
  return __libc_memalign(alignment, size);
}
void* _Znwm(size_t size) { /* operator new */
  note(__builtin_return_address(0), size);
  void* memory = __libc_malloc(size ? size : 1);
  if (!memory) abort();
  return memory;
}
void* _Znam(size_t size) { /* operator new[] */
  note(__builtin_return_address(0), size);
  void* memory = __libc_malloc(size ? size : 1);
  if (!memory) abort();
  return memory;
}
