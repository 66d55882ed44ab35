"""Endpoints: the address of each replica of each RayService, as EndpointSlices that the gateway follows."""
