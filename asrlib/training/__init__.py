"""What training needs besides visible calls: contexts, callbacks, distillation, pruning, meters."""
