/* See twin.h. */
#define LEAVE leave_two
#define TWIN "leave_two"
#include "twin.h"
