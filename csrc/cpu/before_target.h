// The standard headers of the kernels. A kernel file includes them before it changes its target, so that none of their
// inline functions is compiled with instructions that other CPUs lack.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "cpu/kernels.h"
