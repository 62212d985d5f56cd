"""Files become documents, documents become passages. Nothing here knows about models or libraries."""
