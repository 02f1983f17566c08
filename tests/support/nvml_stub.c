/* A libnvidia-ml.so.1 with a scripted counter, so that the real pynvml module
 * can be exercised without a GPU. SERVEWATT_NVML_SCRIPT names a file with one
 * line per energy read: millijoules, or a negative NVML return code. The last
 * line repeats; without a script the counter shows 300 W, every 100 ms. After -1 (uninitialized) or -15 (GPU is lost) a board answers only
 * that until NVML is shut down and started again. Power is SERVEWATT_NVML_MILLIWATTS
 * (default 300000). SERVEWATT_NVML_MIG is the index of a board with MIG mode on;
 * with SERVEWATT_NVML_MIXED the second board is another model; SERVEWATT_NVML_OLD
 * is a driver without instant power and MIG. SERVEWATT_NVML_LOST is the index of a
 * board that is lost from the start. SERVEWATT_NVML_STATE names a file of lines
 * `name number ...`: sm, memory (MHz), celsius, reasons (bits), limit (mW), corrected,
 * uncorrected, pids; a negative number is an NVML return code, a name that is not there
 * is not supported. With `hang 1` the question for a clock never ends.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    int valueType;
    nvmlReturn_t nvmlReturn;
    union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; } value;
} field_value;

static int boards[8];
static long line_of[8];
static nvmlReturn_t lost[8];
static int starts;

static int is_lost(nvmlDevice_t device) {
    const char *text = getenv("SERVEWATT_NVML_LOST");
    return text && (int *)device - boards == atoi(text);
}

static int count(void) {
    const char *text = getenv("SERVEWATT_NVML_BOARDS");
    return text ? atoi(text) : 1;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    starts++;
    return 0;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) {
    if (starts == 0) return 1;
    if (--starts == 0) memset(lost, 0, sizeof lost);
    return 0;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    return code == 15 ? "GPU is lost" : code == 1 ? "Uninitialized" : code == 3 ? "Not Supported" : "scripted error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int length) {
    snprintf(out, length, "000.00-stub");
    return 0;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *out) { *out = count(); return 0; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *out) {
    if ((int)index >= count()) return 2;
    *out = &boards[index];
    return 0;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned int length) {
    snprintf(out, length, "GPU-stub-%ld", (long)((int *)device - boards));
    return 0;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned int length) {
    int other = getenv("SERVEWATT_NVML_MIXED") && device == &boards[1];
    snprintf(out, length, "Stub %s", other ? "B" : "A");
    return 0;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current,
                                  unsigned int *pending) {
    const char *text = getenv("SERVEWATT_NVML_MIG");
    if (getenv("SERVEWATT_NVML_OLD")) return 3;
    *current = *pending = text && (int *)device - boards == atoi(text);
    return 0;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device,
                                                 unsigned long long *out) {
    long board = (int *)device - boards, wanted = line_of[board]++, seen = 0;
    long long value = 0, next;
    if (is_lost(device)) return 15;
    if (lost[board]) return lost[board];
    if (!getenv("SERVEWATT_NVML_SCRIPT")) { /* 300 W by the clock, every 100 ms */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        *out = 30000ull * (now.tv_sec * 10 + now.tv_nsec / 100000000);
        return 0;
    }
    FILE *script = fopen(getenv("SERVEWATT_NVML_SCRIPT"), "r");
    if (!script) return 999;
    while (fscanf(script, "%lld", &next) == 1) {
        value = next;
        if (seen++ == wanted) break;
    }
    fclose(script);
    if (value == -1 || value == -15) lost[board] = (nvmlReturn_t)-value;
    if (value < 0) return (nvmlReturn_t)-value;
    *out = (unsigned long long)value;
    return 0;
}

static unsigned int milliwatts(void) {
    const char *text = getenv("SERVEWATT_NVML_MILLIWATTS");
    return text ? (unsigned int)atoi(text) : 300000u;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *out) {
    if (lost[(int *)device - boards]) return lost[(int *)device - boards];
    *out = milliwatts() + 1000; /* the 1 s average: told apart from the instant */
    return 0;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *out) {
    if (getenv("SERVEWATT_NVML_OLD")) return 3;
    *out = device == &boards[0] ? 700000u : 500000u;
    return 0;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(
    nvmlDevice_t device, unsigned int *least, unsigned int *most) {
    if (getenv("SERVEWATT_NVML_OLD") || device != &boards[0]) return 3;
    *least = 100000u;
    *most = 750000u;
    return 0;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int n, field_value *values) {
    if (lost[(int *)device - boards]) return lost[(int *)device - boards];
    for (int i = 0; i < n; i++) {
        int known = values[i].fieldId == 186 && !getenv("SERVEWATT_NVML_OLD");
        values[i].nvmlReturn = known ? 0 : 3;
        values[i].value.ui = milliwatts();
    }
    return 0;
}

/* The numbers of one line of the state; how many there are, or -1 without the line. */
static int state_of(const char *wanted, long long *numbers, int room) {
    const char *path = getenv("SERVEWATT_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], name[32];
    int found = -1;
    if (!file) return -1;
    while (found < 0 && fgets(line, sizeof line, file)) {
        int used = 0, step = 0;
        if (sscanf(line, "%31s%n", name, &used) != 1 || strcmp(name, wanted)) continue;
        for (found = 0; found < room; found++, used += step)
            if (sscanf(line + used, "%lld%n", &numbers[found], &step) != 1) break;
    }
    fclose(file);
    return found;
}

static nvmlReturn_t number_of(nvmlDevice_t device, const char *name, long long *out) {
    if (lost[(int *)device - boards]) return lost[(int *)device - boards];
    if (state_of(name, out, 1) < 1) return 3;
    return *out < 0 ? (nvmlReturn_t)-*out : 0;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int kind, unsigned int *out) {
    long long value = 0;
    while (state_of("hang", &value, 1) == 1) usleep(10000);
    nvmlReturn_t code = number_of(device, kind == 1 ? "sm" : "memory", &value);
    *out = (unsigned int)value;
    return code;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *out) {
    long long value = 0;
    nvmlReturn_t code = number_of(device, "celsius", &value);
    (void)sensor;
    *out = (unsigned int)value;
    return code;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *out) {
    long long value = 0;
    nvmlReturn_t code = number_of(device, "reasons", &value);
    *out = (unsigned long long)value;
    return code;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *out) {
    if (getenv("SERVEWATT_NVML_OLD")) return 13; /* its name then was another one */
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, out);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *out) {
    long long value = 0;
    nvmlReturn_t code = number_of(device, "limit", &value);
    *out = (unsigned int)value;
    return code;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int kind, int counter,
                                         unsigned long long *out) {
    long long value = 0;
    nvmlReturn_t code = number_of(device, kind == 0 ? "corrected" : "uncorrected", &value);
    (void)counter;
    *out = (unsigned long long)value;
    return code;
}

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_info;

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device,
                                                     unsigned int *count,
                                                     process_info *out) {
    long long pids[16];
    int found = state_of("pids", pids, 16);
    if (lost[(int *)device - boards]) return lost[(int *)device - boards];
    if (found < 0) return 3;
    if (found && pids[0] < 0) return (nvmlReturn_t)-pids[0];
    unsigned int room = *count;
    *count = (unsigned int)found;
    if ((int)room < found) return 7; /* insufficient size: the count says how much */
    for (int i = 0; i < found; i++) out[i].pid = (unsigned int)pids[i];
    return 0;
}
