"""What every room uses: the command line, files, errors, random numbers, threads, the machine. Imports no other room."""
