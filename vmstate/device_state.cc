// placeholder until the codec lands in the next commit
#include "vmstate/device_state.h"
