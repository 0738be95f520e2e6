"""Plain types of the compiler: intervals, regions, plans and errors. Imports no torch."""
