// A driver without a device: enough of libcuda for one GPU whose memory is the host's and whose kernels do nothing.
// What it says of itself, and what fails, is told by the environment.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
enum { OUT_OF_MEMORY = 2 };

static int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

// Fails with FAKE_FAULT at the FAKE_FAULT_AT-th launch, and ever after.
static Status work(int counts) {
    static int launches;
    launches += counts;
    const int at = number("FAKE_FAULT_AT", 0);
    return at > 0 && launches >= at ? number("FAKE_FAULT", 700) : 0;
}

Status cuInit(unsigned flags) { return number("FAKE_INIT", 0); }
Status cuDriverGetVersion(int* version) { return *version = number("FAKE_VERSION", 13000), 0; }
Status cuDeviceGetCount(int* count) { return *count = number("FAKE_COUNT", 1), 0; }
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
Status cuDeviceGetName(char* name, int length, int device) { return strncpy(name, "Imaginary", length), 0; }
Status cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)8 << 30, 0; }
Status cuDeviceGetAttribute(int* value, int attribute, int device) {
    const int capability = number("FAKE_CAPABILITY", 90);
    switch (attribute) {
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 16: *value = 8; break;         // multiprocessors
        case 97: *value = 227 << 10; break; // shared memory a block may ask for
        default: *value = 0;
    }
    return 0;
}
Status cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)1, 0; }
Status cuCtxSetCurrent(void* context) { return 0; }
Status cuStreamCreate(void** stream, unsigned flags) { return *stream = (void*)1, 0; }
Status cuStreamDestroy_v2(void* stream) { return 0; }
Status cuStreamSynchronize(void* stream) { return work(0); }
Status cuModuleLoadData(void** module, const void* image) { return *module = (void*)1, number("FAKE_LOAD", 0); }
Status cuModuleUnload(void* module) { return 0; }
Status cuModuleGetFunction(void** function, void* module, const char* name) { return *function = (void*)1, 0; }
Status cuFuncGetAttribute(int* value, int attribute, void* function) { return *value = 0, 0; }
Status cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
Status cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = (size_t)8 << 30, 0; }
Status cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    static int allocations;
    if (++allocations == number("FAKE_FULL_AT", 0)) return OUT_OF_MEMORY;
    return *address = (uint64_t)(uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256), memset((void*)*address, 0, bytes), 0;
}
Status cuMemFree_v2(uint64_t address) { return free((void*)address), 0; }
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    return memcpy((void*)to, from, bytes), work(0);
}
Status cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    return memcpy(to, (void*)from, bytes), work(0);
}
Status cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    return memset((void*)to, value, bytes), work(0);
}
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** parameters, void** extra) {
    return work(1);
}
Status cuGetErrorName(int error, const char** text) {
    *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
          : error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
Status cuGetErrorString(int error, const char** text) { return *text = "as the driver puts it", 0; }
