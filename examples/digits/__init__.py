"""scikit-learn's handwritten digits, real data without a download, and a small network that reads them."""
