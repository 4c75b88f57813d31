// What shares a scale where K is walked in blocks of KC.
#if W_SCALE_GROUP || W_SCALE_BLOCK
#define GROUP W_GROUP
#define RUN (GROUP < KC ? GROUP : KC) // codes of a block that share a scale
#else
#define GROUP K
#define RUN KC
#endif
#define RUNS ((K + GROUP - 1) / GROUP) // scales of a row
