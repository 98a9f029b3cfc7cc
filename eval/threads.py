"""How many threads a job has."""

# One each: two jobs whose threads wait for each other are slower, and sums in another order are other numbers.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
