"""What the station remembers: tables, their migrations, and questions to them."""
