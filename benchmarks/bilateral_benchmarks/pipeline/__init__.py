"""Every named model at its real size, from checkpoint to gRPC: one command, one table."""
