// An NVRTC that knows its version and nothing else.
#include <stdlib.h>

int nvrtcVersion(int* major, int* minor) {
    const char* version = getenv("FAKE_NVRTC");
    *major = version ? atoi(version) : 13;
    *minor = 8;
    return 0;
}
