// Memory of the calling thread that lives until scratch_reset(), and is kept for the next call.
#pragma once
#include <cstddef>

void* scratch_take(size_t bytes);
void scratch_reset();
