// Drives the plugin through TensorRT's C++ interfaces, without TensorRT and without a GPU: runs the
// cases named on the command line, or all. The kernel table is made up
// (tests/export/plugin/conftest.py).
#include "check.h"

int main(int count, char** names) { return check::run(count - 1, names + 1) == 0 ? 0 : 1; }
