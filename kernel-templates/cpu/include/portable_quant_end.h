    if (residual) v += get(residual + row * n + c);
    if (!swiglu) put(y + row * n + c, v);
    else if (c % 2 == 0) gate = v;
    else put(y + row * (n / 2) + c / 2, gate / (1.0f + __builtin_expf(-gate)) * v);
#endif
  }
  (void)residual, (void)swiglu, (void)gate;
}

#include "qkv_portable.h"
