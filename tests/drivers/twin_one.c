/* See twin.h. */
#define LEAVE leave_one
#define TWIN "leave_one"
#include "twin.h"
