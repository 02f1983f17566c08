/* A libnvidia-ml.so.1 with a scripted counter, so that the real pynvml module
 * can be exercised without a GPU. SERVEWATT_NVML_SCRIPT names a file with one
 * line per energy read: millijoules, or a negative NVML return code. The last
 * line repeats. Power is SERVEWATT_NVML_MILLIWATTS (default 300000).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    int valueType;
    nvmlReturn_t nvmlReturn;
    union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; } value;
} field_value;

static int boards[2];
static long line_of[2];

static int count(void) {
    const char *text = getenv("SERVEWATT_NVML_BOARDS");
    return text ? atoi(text) : 1;
}

nvmlReturn_t nvmlInit_v2(void) { return 0; }
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return 0; }
nvmlReturn_t nvmlShutdown(void) { return 0; }

const char *nvmlErrorString(nvmlReturn_t code) {
    return code == 15 ? "GPU is lost" : code == 3 ? "Not Supported" : "scripted error";
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *out) { *out = count(); return 0; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *out) {
    if ((int)index >= count()) return 2;
    *out = &boards[index];
    return 0;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    if (strcmp(uuid, "GPU-stub-0") != 0) return 6;
    *out = &boards[0];
    return 0;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device,
                                                 unsigned long long *out) {
    long board = (int *)device - boards, wanted = line_of[board]++, seen = 0;
    long long value = 0, next;
    FILE *script = fopen(getenv("SERVEWATT_NVML_SCRIPT"), "r");
    if (!script) return 999;
    while (fscanf(script, "%lld", &next) == 1) {
        value = next;
        if (seen++ == wanted) break;
    }
    fclose(script);
    if (value < 0) return (nvmlReturn_t)-value;
    *out = (unsigned long long)value;
    return 0;
}

static unsigned int milliwatts(void) {
    const char *text = getenv("SERVEWATT_NVML_MILLIWATTS");
    return text ? (unsigned int)atoi(text) : 300000u;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *out) {
    (void)device;
    *out = milliwatts() + 1000; /* the 1 s average: told apart from the instant */
    return 0;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int n, field_value *values) {
    (void)device;
    for (int i = 0; i < n; i++) {
        int known = values[i].fieldId == 186 && !getenv("SERVEWATT_NVML_OLD");
        values[i].nvmlReturn = known ? 0 : 3;
        values[i].value.ui = milliwatts();
    }
    return 0;
}
