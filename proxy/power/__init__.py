"""From a sensor to readings: the sources, and the thread that reads one on a grid."""
