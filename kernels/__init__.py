"""The ops: a contract as data, a reference, a function body of standard ops, and kernels, one folder each."""
