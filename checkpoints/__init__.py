"""The run folder on disk: frozen records in HDF5, one file each, whole or absent. NumPy and h5py only, no torch."""
