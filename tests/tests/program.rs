//! Ring 2: does the kernel agree? The program in the kernel, under BPF_PROG_TEST_RUN, on
//! packets made by hand and at random, against the naive oracle. Needs root.

mod program {
    mod answers;
    mod audit;
    mod common;
    mod early;
    mod explained;
    mod fields;
    mod floor;
    mod fragments;
    mod handed_on;
    mod kept;
    mod neighbours;
    mod odd;
    mod random;
    mod strict;
    mod swap;
    mod verdicts;
    mod weight;
}
