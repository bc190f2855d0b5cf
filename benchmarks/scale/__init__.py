"""How many replicas a load needs: a simulation, its check against real replicas, and the speed of one core."""
