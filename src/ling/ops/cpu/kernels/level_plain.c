/* For every other processor: plain C, which the compiler vectorises as it can. */
#include "kernels.h"
#define LEVEL_NAME "plain"
#define LEVEL_TABLE ling_level_plain
#include "level.h"
