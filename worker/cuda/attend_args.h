// What kernels of attention take, whatever their arithmetic.
#pragma once

#include "cells.h"

struct AttendItem {
    uint32_t row;
    uint32_t rows;
};

struct AttendArgs {
    const float *columns;
    const AttendItem *items;
    float *chunks;
    CellPlaces cells;
    RowPlaces rows;
    uint32_t group;
    uint32_t heads;
    uint32_t num_chunks;
    uint32_t first_row;
};
