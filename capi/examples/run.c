/* A product with a tuned kernel, from C: run BUNDLE M N K.
 *
 *   cc -O2 run.c -I ../include -L ../../target/release -ljitune_c -Wl,-rpath,"$PWD/../../target/release" -o run
 *
 * The program finds the library by its rpath; without one, LD_LIBRARY_PATH has to name the folder.
 */
#include <jitune.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, jitune_last_error());
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: run BUNDLE M N K\n"), 2;
    const size_t m = strtoul(argv[2], NULL, 10), n = strtoul(argv[3], NULL, 10), k = strtoul(argv[4], NULL, 10);
    char problem[128];
    snprintf(problem, sizeof problem, "matmul m=%zu n=%zu k=%zu dtype=f32", m, n, k);

    jitune_runtime *runtime;
    jitune_kernel *kernel;
    jitune_bound *bound;
    if (jitune_open_cpu(argv[1], 2, &runtime) != JITUNE_OK) return failed("open");
    if (jitune_lookup(runtime, problem, &kernel) != JITUNE_OK) return failed("lookup");
    jitune_close(runtime); /* the kernel keeps what it needs */

    uint64_t addresses[8] = {0};
    float *memory[8] = {0};
    for (size_t i = 0; i < jitune_tensor_count(kernel) && i < 8; i++) {
        jitune_tensor tensor;
        if (jitune_tensor_at(kernel, i, &tensor) != JITUNE_OK) return failed("tensor");
        memory[i] = malloc(tensor.bytes);
        addresses[i] = (uint64_t)(uintptr_t)memory[i];
        printf("%s: %llu bytes%s\n", tensor.name, (unsigned long long)tensor.bytes, tensor.output ? ", written" : "");
        for (size_t e = 0; e < tensor.bytes / sizeof(float); e++) {
            memory[i][e] = tensor.output ? NAN : (float)(int)(e * 37 % 19) / 16 - 0.5f;
        }
    }
    const float *x = memory[0], *w = memory[1], *y = memory[2];
    const size_t scratch = jitune_workspace_bytes(kernel);
    void *workspace = scratch ? malloc(scratch) : NULL;
    if (workspace && jitune_workspace_zeroed(kernel)) memset(workspace, 0, scratch);
    const uint64_t at = (uint64_t)(uintptr_t)workspace;
    if (jitune_bind(kernel, addresses, jitune_tensor_count(kernel), at, &bound) != JITUNE_OK) return failed("bind");
    if (jitune_launch_host(bound) != JITUNE_OK) return failed("launch");

    double worst = 0;
    for (size_t row = 0; row < m; row++) {
        for (size_t col = 0; col < n; col++) {
            double sum = 0;
            for (size_t i = 0; i < k; i++) sum += (double)x[row * k + i] * w[col * k + i];
            const double error = fabs(sum - y[row * n + col]);
            if (!(error <= worst)) worst = error; /* a NaN is worst of all */
        }
    }
    printf("%s: largest error %.1e\n", jitune_kernel_name(kernel), worst);
    jitune_bound_free(bound);
    jitune_kernel_free(kernel);
    for (size_t i = 0; i < 8; i++) free(memory[i]);
    free(workspace);
    return worst < 1e-3 ? 0 : 1;
}
