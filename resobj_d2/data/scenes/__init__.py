"""Generated scenes: shapes of five classes before textures, for the demo and the tests."""
