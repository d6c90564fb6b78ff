"""What crosses a network, and the one module that imports Flower."""
