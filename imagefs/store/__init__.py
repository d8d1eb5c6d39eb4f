"""Where images live: buckets of objects (a directory, S3) and the layouts that make stores of images of them."""
