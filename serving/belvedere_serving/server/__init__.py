"""The V2 model server: one engine behind HTTP and gRPC, on Ray Serve or bare."""
