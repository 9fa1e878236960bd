/* All kernels for one instruction set; LEVEL_NAME and a macro that says which are set by the file that includes this. */
#include <math.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define thread_number() omp_get_thread_num()
#else
#define thread_number() 0
#endif

#include "vector.h"
#include "product.h"
#include "linear.h"
#include "moe.h"
#include "norm.h"
#include "held.h"
#include "attention_piece.h"
#include "attention.h"
#include "stack.h"
#include "choose.h"
#include "shortlist.h"
#include "propose.h"
#include "pack.h"

const Level LEVEL_TABLE = {LEVEL_NAME, linear, mlp,           moe,    rms_norm,  heads,   attend,
                           stack,      choose_tokens, sketch, shortlist, propose, pack};
